"""Numbers, boxes and marks as people, JSON and LaTeX write them."""

import decimal
import fractions
import random

import pytest

from jaxrl_llm.rewards import notation

TWELVE_THOUSAND = ("12000", "12,000", "12{,}000", r"12\,000", "12 000", "12\u202f000", "12\u00a0000", r"12,\!000", r"12\;000")
THINGS = [
    "\\",
    "{",
    "}",
    "frac",
    "boxed",
    "text",
    "fbox",
    "1",
    "23",
    "456",
    ".",
    ",",
    " ",
    "/",
    "-",
    "e",
    "E+",
    "^",
    "$",
    "#",
    "\n",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, "12000") for text in TWELVE_THOUSAND),
        ("1e-05", "0.00001"),
        ("3.0", "3"),
        ("1e16", "10000000000000000"),
        (r"2.5 \times 10^{-7}", "0.00000025"),
        (r"10^{5}", "100000"),
        (r"-\frac12", "-0.5"),
        ("3/2", "1.5"),
        (r"$\dfrac{1}{4}$", "0.25"),
        (r"\$5", "5"),
        ("-$1,234.50.", "-1234.5"),
        ("\u22125", "-5"),
        (r"\textbf{8}", "8"),
        (r"\text{The answer is } 8", "8"),
        ("1,23,456", "123456"),
    ],
)
def test_numbers(text, value):
    found = notation.number(text)
    assert found == decimal.Decimal(value) and hash(found) == hash(decimal.Decimal(value))


def test_what_is_no_number():
    for text in ("", "x", "1 2", "12,34", "5%", "1/0", "1e9999", "1e", "--5", "1.2.3", r"\frac{1}{x}"):
        assert notation.number(text) is None, text
    assert notation.number("1/3") == fractions.Fraction(1, 3) != notation.number("0.3333333")
    assert notation.number("1e-12") != notation.number("2e-12")


def test_the_last_number_of_a_text():
    for text, value in (
        ("(3,4)", 4),
        ("10-5", 5),
        ("x=-5", -5),
        ("a 3.5.", "3.5"),
        ("It costs $1,234.50!", "1234.5"),
        ("no", None),
    ):
        assert notation.last_number(text) == (None if value is None else decimal.Decimal(value)), text


def test_boxes():
    for text, content in (
        (r"so \fbox{9}", "9"),
        (r"\boxed{9} and \boxed{ }", "9"),
        (r"\boxed{9} and \boxed{\text{}}", "9"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed{\mathbf{\text{8}}}", "8"),
        (r"\boxed{\text{Monday}}", "Monday"),
        (r"\boxed{\frac{\sqrt{8}}{2}}", r"\frac{\sqrt{8}}{2}"),
        (r"\boxed 5", "5"),
        (r"\boxed{5", None),
        ("no", None),
    ):
        assert notation.last_box(text) == content, text


def test_nothing_breaks_the_reading():
    """Pieces of notation in any order, and long texts: a number that is read is the same when it is written plainly."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(THINGS, k=draw.randrange(1, 12))) for _ in range(5000)]
    long = (r"\text{" * 5000, "1,000" * 5000, r"\boxed{" * 2000, "####" * 5000, " " * 20_000 + "x", "{" * 20_000)
    numbers = 0
    for text in (*texts, *long):
        for read in (notation.number, notation.last_number, notation.number_at_start):
            found = read(text)
            numbers += found is not None
            assert found is None or notation.number(str(found)) == found, (read, text)
        for read in (notation.marked, notation.last_box):
            assert read(text) is None or set(read(text)) <= set(text), (read, text)
    assert numbers > 2000
    assert notation.number("9" * 20_000) == decimal.Decimal("9" * 20_000)
