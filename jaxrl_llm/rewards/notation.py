"""How answers are written: numbers as people, JSON and LaTeX write them, boxes, and the mark of GSM8K."""

import decimal
import fractions
import re

GSM8K_MARKER = "####"
# Further exponents are no answers to anything, and exact arithmetic would not end.
LARGEST_EXPONENT = 400

Number = decimal.Decimal | fractions.Fraction

# What stands between groups of digits: of people, and of LaTeX. A plain space only where nothing but the number is looked for.
_GROUPING = r"(?:,\\!|\{,\}|\\[,;:!> ]|,|~|[\u00a0\u2007\u2009\u202f\u2006'\u2019])"
_LOOSE = rf"(?:{_GROUPING}|[ ])"


def _digits(separator: str) -> str:
    return rf"(?:\d{{1,3}}(?:{separator}\d{{2,3}})*{separator}\d{{3}}(?!\d)|\d+)"


def _decimal(separator: str) -> str:
    power = r"(?:[eE][-+]?\d+(?!\w)|\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*\^\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+))"
    return rf"(?:{_digits(separator)}(?:\.\d+|\.(?!\w))?|\.\d+){power}?"


# A sign counts where no digit, letter or bracket comes before it; one with a space behind it where no digit or bracket comes
# before a space, so that the last number of "10-5" and of "10 - 5" is 5.
_SIGN = r"(?:(?<![\w.)}])[-+]\s?)?\\?\$?\s?"
_IN_TEXT = re.compile(rf"(?<![\w.)}}])(?:(?<![\d)}}]\s)[-+]\s|[-+])\\?\$?{_decimal(_GROUPING)}|{_decimal(_GROUPING)}")
_AT_START = re.compile(rf"{_SIGN}{_decimal(_LOOSE)}")
_QUOTIENT = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:\\[dt]?frac\s*(?:\{{\s*(?P<a>[^{{}}]+)\}}|(?P<c>\d))\s*(?:\{{\s*(?P<b>[^{{}}]+)\}}|(?P<d>\d))"
    rf"|(?P<e>{_decimal(_LOOSE)})\s*/\s*(?P<f>{_decimal(_LOOSE)}))"
)
_POWER = re.compile(r"(?:[eE]|\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*\^\s*)\{?\s*([-+]?\d+)\s*\}?$")
_TEN_TO = re.compile(r"([-+]?)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
_MARK = re.compile(rf"(?<!#){GSM8K_MARKER}(?!#)[ \t]*")
_OPENERS = re.compile(r"\\(?:boxed|fbox)\s*")
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mathrm|mathbf|mathit|mathsf|mbox|operatorname|bm|boldsymbol)\s*\{([^{}]*)\}"
)


def number(text: str) -> Number | None:
    """The one number that `text` is, exactly: 12{,}000, $1,234.5, 1e-05, 2.5 \\times 10^{-7}, 3/2, \\frac{3}{2}; else None.

    White space, "$", a point at the end and signs of mathematics around it aside. It is a fraction only where no decimal is
    equal to it, so that equal numbers are equal and have one hash.
    """
    text = _bare(text)
    if found := _QUOTIENT.fullmatch(text):
        above, below = (
            number(part) for part in (found["a"] or found["c"] or found["e"], found["b"] or found["d"] or found["f"])
        )
        if above is None or not below:
            return None
        sign = -1 if found["sign"] == "-" else 1
        return _simplest(sign * fractions.Fraction(above) / fractions.Fraction(below))
    if found := _TEN_TO.fullmatch(text):
        return _scaled(found[1] + "1", found[2])
    return _read(text) if _AT_START.fullmatch(text) else None


def last_number(text: str) -> Number | None:
    """The last number that is written in `text`, fractions in LaTeX read as their parts; None if there is none."""
    for found in reversed(_IN_TEXT.findall(_plain(text))):
        if (value := _read(found)) is not None:
            return value
    return None


def marked(text: str) -> str | None:
    """What follows the last "####" that marks an answer; None if there is no mark.

    Four hashes that begin a line are a heading, no mark, where words follow them, or a number as in "#### 1. Add", and the
    text goes on below.
    """
    for mark in reversed(list(_MARK.finditer(text))):
        line, _, below = text[mark.end() :].partition("\n")
        begins_line = not text[: mark.start()].rpartition("\n")[2].strip()
        if not (begins_line and below.strip() and _is_heading(line)):
            return text[mark.end() :]
    return None


def number_at_start(text: str) -> Number | None:
    """The number that `text` begins with, its digits in groups as they may be, or the first one that stands in it."""
    text = _plain(text).lstrip(" \t\n*$_")
    if _OPENERS.match(text) and (content := last_box(text)) is not None:
        return number(content)
    found = _AT_START.match(text)
    found = found or _IN_TEXT.search(text)
    return _read(found[0]) if found else None


def last_box(text: str) -> str | None:
    """Content of the last \\boxed{...} or \\fbox{...} that is not empty, words round an answer taken away; None if none."""
    ends = _ends_of_groups(text)
    for opener in reversed(list(_OPENERS.finditer(text))):
        start = opener.end()
        braced = text[start : start + 1] == "{"
        content = text[start + 1 : ends.get(start, start)] if braced else text[start : start + 1]
        if content.strip() and (answer := without_words(content)):
            return answer
    return None


def without_words(text: str) -> str:
    """`text` without the words that LaTeX sets as such, or, where nothing else is there, those words."""
    outside, inside = text.strip(), text.strip()
    while _WORDS.search(outside):
        outside = _WORDS.sub(" ", outside)
    if outside.strip(" ~:.,\\$"):
        return outside.strip().strip("$~:, ").strip()
    while _WORDS.search(inside):
        inside = _WORDS.sub(r"\1", inside)
    return inside.strip().strip("$").strip()


def _ends_of_groups(text: str) -> dict[int, int]:
    """Place of the closing brace by that of the opening one, braces that are written as characters aside."""
    opened, ends = [], {}
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            ends[opened.pop()] = found.start()
    return ends


def _is_heading(line: str) -> bool:
    bare = _plain(line).lstrip(" *$_")
    found = _AT_START.match(bare)
    if _OPENERS.match(bare):
        return False
    return found is None or re.match(r"[.):]\s+\S", bare[len(found[0].rstrip(".")) :]) is not None


def _plain(text: str) -> str:
    return text.replace("\u2212", "-").replace("\uff0d", "-")


def _bare(text: str) -> str:
    text = _plain(without_words(text)).strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$", "$")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text.rstrip(".").strip() if re.search(r"\d\.$", text) else text


def _read(text: str) -> Number | None:
    power = _POWER.search(text)
    digits = re.sub(rf"{_LOOSE}|[$\s]|\\", "", text[: power.start()] if power else text)
    return _scaled(digits, power[1] if power else "0")


def _scaled(digits: str, exponent: str) -> decimal.Decimal | None:
    if len(exponent.lstrip("+-0")) > 3 or abs(int(exponent)) > LARGEST_EXPONENT:
        return None
    sign, value, point = decimal.Decimal(digits.rstrip(".")).as_tuple()
    return decimal.Decimal((sign, value, point + int(exponent)))


def _simplest(value: fractions.Fraction) -> Number:
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return value
    digits = tuple(map(int, str(abs(value.numerator) * 10**places // value.denominator)))
    return decimal.Decimal((int(value < 0), digits, -places))
