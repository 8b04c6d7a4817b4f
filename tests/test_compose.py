"""Functions with options as values: compare, hash, print, call, refuse."""

import jax
import numpy as np
import pytest

from jaxrl_llm.compose import bind, composable, declared, keyword_defaults, outstanding


@composable
def scaled(x, *, factor=2.0, shift=0.0):
    """Doc of scaled."""
    return factor * x + shift


@composable(needs=("entropy",), annotations=("returns",))
def outer(x, *, inner=scaled(), pair=()):  # noqa: B008
    return inner(x)


@composable
def wrapper(x, *, inner, others=()):
    return inner(x)


@composable
def required(x, *, size):
    return x * size


def test_calls_with_its_options():
    assert scaled()(3.0) == 6.0
    assert scaled(factor=3.0, shift=1.0)(2.0) == 7.0
    assert scaled.function(3.0, factor=5.0) == 15.0
    assert outer(inner=scaled(factor=4.0))(1.0) == 4.0


def test_compares_and_hashes_by_function_and_options():
    assert scaled() == scaled(factor=2.0)
    assert hash(scaled()) == hash(scaled(factor=2.0))
    assert scaled() != scaled(factor=3.0)
    assert scaled() != required(size=1)
    assert len({scaled(), scaled(factor=2.0), scaled(shift=1.0)}) == 2


def test_is_a_static_argument_of_jit():
    traces = []

    def run(function, x):
        traces.append(function)
        return function(x)

    program = jax.jit(run, static_argnums=0)
    np.testing.assert_allclose(program(scaled(factor=3.0), 2.0), 6.0)
    np.testing.assert_allclose(program(scaled(factor=3.0), 4.0), 12.0)
    assert len(traces) == 1


def test_prints_as_the_code_that_makes_it():
    assert repr(scaled()) == "scaled()"
    assert repr(scaled(factor=2.0, shift=1.0)) == "scaled(shift=1.0)"
    assert repr(outer(inner=scaled(factor=3.0))) == "outer(inner=scaled(factor=3.0))"
    assert repr(required(size=2)) == "required(size=2)"
    for value in (scaled(shift=1.0), outer(inner=scaled(factor=3.0)), required(size=2)):
        assert eval(repr(value), {"scaled": scaled, "outer": outer, "required": required}) == value


def test_unknown_and_missing_options_name_the_known():
    with pytest.raises(TypeError, match=r"scaled: unknown option 'factr'; it takes \['factor', 'shift'\]"):
        scaled(factr=1.0)
    with pytest.raises(TypeError, match="option 'size' has no default"):
        required()
    with pytest.raises(TypeError, match="no options"):
        bind(lambda x: x, {"anything": 1})


def test_declarations_reach_through_options_and_tuples():
    assert outer().needs == {"entropy"}
    assert scaled().needs == frozenset()
    nested = wrapper(inner=scaled(), others=(scaled(), (outer(),)))
    assert nested.needs == {"entropy"} and nested.annotations == {"returns"}
    assert wrapper(inner=wrapper(inner=outer())).needs == {"entropy"}
    assert declared(((outer(),), scaled(), 3, "text"), "annotations") == {"returns"}


def test_keeps_name_and_documentation():
    assert scaled.__name__ == "scaled" and scaled.__doc__ == "Doc of scaled."
    assert keyword_defaults(scaled.function) == {"factor": 2.0, "shift": 0.0}


@composable(annotations=lambda options: (options["against"] + "_logp",), provides=("made",))
def chosen(x, *, against="behavior"):
    return x


@composable(annotations=("made", "other"))
def after(x, *, inner=None):
    return x


def coupled(x, *, size=1):
    return x


coupled.coupled = True


def test_what_is_needed_may_depend_on_options():
    assert chosen().annotations == {"behavior_logp"} and chosen(against="teacher").annotations == {"teacher_logp"}


def test_what_an_earlier_part_provides_is_not_outstanding():
    assert outstanding((chosen(), after())) == {"behavior_logp", "other"}
    assert outstanding((after(), chosen())) == {"behavior_logp", "made", "other"}


def test_coupling_is_found_through_options():
    assert bind(coupled, {}).coupled and not after().coupled
    assert after(inner=composable(coupled)()).coupled and after(inner=(composable(coupled)(),)).coupled
