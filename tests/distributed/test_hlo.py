"""What is read from HLO text, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl_llm.distributed import make_mesh
from jaxrl_llm.distributed.hlo import read_hlo

# Text of an XLA program for two axes of four and two devices, as compilers for TPU write it: a loop of eight turns whose
# counter goes up by two, and whose body has a slice of a stack and a dot that is a convolution over padding.
TEXT = """HloModule jit_f, is_scheduled=true

%taken (stack: f32[8,128], at: s32[]) -> f32[1,128] {
  %stack = f32[8,128]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %slice = f32[1,128]{1,0} dynamic-slice(%stack, %at, %at), dynamic_slice_sizes={1,128}
}

%body (state: (s32[], f32[8,128], bf16[4,8])) -> (s32[], f32[8,128], bf16[4,8]) {
  %state = (s32[], f32[8,128]{1,0}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %whole = f32[8,128]{1,0} get-tuple-element(%state), index=1
  %x = bf16[4,8]{1,0:S(1)} get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %after = s32[] add(%next, %one)
  %part = f32[1,128]{1,0:S(1)} fusion(%whole, %i), kind=kLoop, calls=%taken
  %w = bf16[8,3]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = bf16[4,3]{1,0:S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %padded = bf16[4,2,3]{2,1,0:S(1)} convolution(%x, %w), window={size=2 pad=1_1}, dim_labels=b0f_0io->b0f
  %sent = bf16[4,8]{1,0:S(1)} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %out = (s32[], f32[8,128]{1,0}, bf16[4,8]{1,0}) tuple(%after, %whole, %sent)
}

%condition (state: (s32[], f32[8,128], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], f32[8,128]{1,0}, bf16[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(16)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (p: (s32[], f32[8,128], bf16[4,8])) -> (s32[], f32[8,128], bf16[4,8]) {
  %p = (s32[], f32[8,128]{1,0}, bf16[4,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,128]{1,0}, bf16[4,8]{1,0}) while(%p), condition=%condition, body=%body
}
"""


def compiled(function, *arguments, mesh):
    with jax.set_mesh(mesh):
        return read_hlo(jax.jit(function).lower(*arguments).compile().as_text(), mesh)


def on(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def test_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(data=8)

    def repeated(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = compiled(repeated, on(mesh, (16, 32), "data"), on(mesh, (5, 32, 32)), mesh=mesh)
    assert found.flops == 5 * 2 * (16 // 8) * 32 * 32
    assert found.unknown_loops == 0 and not found.collectives


def test_loops_inside_of_loops_multiply_and_loops_of_unknown_length_count_as_told():
    mesh = make_mesh(data=8)

    def until(x, w):
        step = lambda state: jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), state)  # noqa: E731
        inner = lambda state: jax.lax.while_loop(lambda y: y.sum() < 10.0, step, state)  # noqa: E731
        return jax.lax.while_loop(lambda y: y.sum() < 100.0, inner, x)

    with jax.set_mesh(mesh):
        text = jax.jit(until).lower(on(mesh, (4, 16)), on(mesh, (16, 16))).compile().as_text()
    one, alike, unlike = (read_hlo(text, mesh, lengths) for lengths in ((1,), (7,), (7, 2)))
    assert one.unknown_loops == 2
    assert one.flops == 3 * 2 * 4 * 16 * 16 and alike.flops == 7 * 7 * one.flops and unlike.flops == 7 * 2 * one.flops


@pytest.mark.parametrize(("spec", "axes", "count"), [
    (("fsdp",), "fsdp", 2), (("tensor",), "tensor", 4), ((("fsdp", "tensor"),), "fsdp+tensor", 8),
])  # fmt: skip
def test_gathers_and_sums_are_told_with_their_axes_and_bytes(spec, axes, count):
    mesh = make_mesh(fsdp=2, tensor=4)

    def gathered(x):
        return jax.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P()))

    found = compiled(gathered, on(mesh, (64, 8), *spec), mesh=mesh)
    assert list(found.collectives) == [("all-gather", axes)]
    gather = found.collectives["all-gather", axes]
    assert gather.sent == 64 * 8 * 4 * (count - 1) / count and gather.times == 1 and gather.largest == 64 * 8

    def summed(x, w):
        return jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P()))

    found = compiled(summed, on(mesh, (4, 64), None, *spec), on(mesh, (64, 8), *spec), mesh=mesh)
    assert found.flops == 2 * 4 * (64 // count) * 8
    total = found.collectives["all-reduce", axes]
    assert total.sent == 2 * 4 * 8 * 4 * (count - 1) / count


def test_steps_of_counters_slices_of_stacks_and_convolutions_over_padding():
    mesh = make_mesh(fsdp=4, tensor=2)
    found = read_hlo(TEXT, mesh)
    turns = 8  # 16 by steps of two
    plain = 2 * 4 * 3 * 8
    assert found.collectives["collective-permute", "tensor"].sent == turns * 4 * 8 * 2
    assert found.collectives["collective-permute", "tensor"].times == turns
    # Of two places of a window of two over one column with padding on both sides, each meets it once.
    assert found.flops >= turns * plain
    # In HBM lies the stack alone, of which a turn takes a row; beside it the counters, 4 bytes each time.
    assert turns * 512 <= found.bytes <= turns * (512 + 64)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_hlo("HloModule empty\n", make_mesh(data=8))


ASYNCHRONOUS = """HloModule slices
%inside (p: f32[8,128], i: s32[]) -> f32[1,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,128]{1,0:S(1)} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,128}
}
%nothing (q: f32[8,128]) -> f32[8,128] {
  ROOT %q = f32[8,128]{1,0} parameter(0)
}
%something (r: f32[8,128]) -> f32[8,128] {
  %r = f32[8,128]{1,0} parameter(0)
  ROOT %t = f32[8,128]{1,0} negate(%r)
}
ENTRY %main (x: f32[8,128], i: s32[], c: pred[]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %c = pred[] parameter(2)
  %a = ((f32[8,128]{1,0}, s32[]), f32[1,128]{1,0:S(1)}, u32[]{:S(2)}) async-start(%x, %j), calls=%inside
  %d = f32[1,128]{1,0:S(1)} async-done(%a)
  ROOT %k = f32[8,128]{1,0} conditional(%c, %x, %x), branch_computations={%nothing, %something}
}
"""


def test_slices_that_are_taken_meanwhile_and_branches_that_are_not_always_taken():
    """A slice of 512 bytes goes into fast memory; the second branch reads and writes 4096 bytes, when it is taken."""
    for taken in (1.0, 0.25, 0.0):
        assert read_hlo(ASYNCHRONOUS, make_mesh(8), taken=taken).bytes == 512 + taken * 2 * 4096


WINDOWED = """HloModule windows
%window (x: bf16[64,1,1024], i: s32[]) -> bf16[64,2,128] {
  %x = bf16[64,1,1024]{2,0,1} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %lowest = bf16[] constant(-inf)
  %padded = bf16[64,2,1024]{2,0,1} pad(%x, %lowest), padding=0_0x0_1x0_0
  %slice = bf16[64,2,128]{2,0,1} dynamic-slice(%padded, %zero, %zero, %i), dynamic_slice_sizes={64,2,128}
  ROOT %wide = bf16[64,2,128]{2,0,1} maximum(%slice, %slice)
}
%accumulated (acc: bf16[64,32], x: bf16[64,1,1024], i: s32[], w: bf16[2,128,32]) -> bf16[64,32] {
  %acc = bf16[64,32]{1,0} parameter(0)
  %x.1 = bf16[64,1,1024]{2,0,1} parameter(1)
  %i.1 = s32[] parameter(2)
  %w = bf16[2,128,32]{2,1,0} parameter(3)
  %inner = bf16[64,2,128]{2,0,1} fusion(%x.1, %i.1), kind=kLoop, calls=%window
  %dot = bf16[64,32]{1,0} dot(%inner, %w), lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}
  ROOT %sum = bf16[64,32]{1,0} add(%acc, %dot)
}
ENTRY %main (acc: bf16[64,32], x: bf16[64,1,1024], i: s32[], w: bf16[2,128,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[64,1,1024]{2,0,1} parameter(1)
  %c = s32[]{:S(6)} parameter(2)
  %d = bf16[2,128,32]{2,1,0} parameter(3)
  ROOT %r = bf16[64,32]{1,0} fusion(%a, %b, %c, %d), kind=kOutput, calls=%accumulated
}
"""


def test_windows_of_an_operand_count_as_what_is_read_of_it():
    """A dot in windows reads its sum, one window of 128 of the 1024 columns, and the weights of two, and writes the sum."""
    found = read_hlo(WINDOWED, make_mesh(8))
    assert found.bytes == 2 * (64 * 32 + 64 * 128 + 2 * 128 * 32 + 64 * 32)
    assert found.flops == 2 * 64 * 32 * 2 * 128
