"""A few problems in each form of tests, with completions that are right and others that are wrong."""

SQUARES = {
    "prompt": "from typing import List\n\n\ndef helper(x):\n    return x * x\n\n\n"
    'def squares(numbers: List[int]) -> List[int]:\n    """Squares of the even ones, in their order."""\n',
    "test": "def check(candidate):\n    for n in range(4):\n        numbers = list(range(n))\n"
    "        assert candidate(numbers) == [helper(x) for x in numbers if x % 2 == 0]\n    assert candidate([-2]) == [4]\n",
    "entry_point": "squares",
}
WORDS = {
    "prompt": "Write a function count_words(text) that says how many words there are.",
    "test_list": [
        "assert count_words('a b  c') == 3",
        "assert count_words('') == 0",
        "assert math.sqrt(count_words('a b c d')) == 2",
    ],
    "test_imports": ["import math"],
}
TREES = {
    "prompt": "Write a class Tree(value, left, right) and a function depth(tree).",
    "test_list": ["assert depth(root) == 2", "assert depth(None) == 0"],
    "test_setup_code": "root = Tree(1, Tree(2, None, None), None)",
}
SUMS = {
    "prompt": "Read numbers, one a line, and print their sum.",
    "cases": {"inputs": ["1\n2\n3\n", "", "-5"], "outputs": ["6", "0\n", " -5 ".strip()]},
}

# (example, completion, share of the tests that hold)
RIGHT = [
    (SQUARES, "    return [helper(x) for x in numbers if x % 2 == 0]\n", 1.0),
    (SQUARES, "So:\n```python\ndef squares(numbers):\n    return [helper(x) for x in numbers if not x % 2]\n```\nDone.", 1.0),
    (SQUARES, "```\ndef squares(n): return 1\n```\nNo:\n```py\n    return [x ** 2 for x in numbers if x % 2 == 0]\n```", 1.0),
    (WORDS, "```python\ndef count_words(text):\n    return len(text.split())\n```", 1.0),
    (WORDS, "def count_words(text):\n    return len(text.split())", 1.0),
    (TREES, "class Tree:\n    def __init__(self, value, left, right): self.l, self.r = left, right\n"
     "def depth(t): return 0 if t is None else 1 + max(depth(t.l), depth(t.r))", 1.0),
    (SUMS, "```python\nimport sys\nprint(sum(map(int, sys.stdin)))\n```", 1.0),
    (SUMS, "total = 0\nwhile True:\n    try: total += int(input())\n    except EOFError: break\nprint(total, '')", 1.0),
]  # fmt: skip
WRONG = [
    (SQUARES, "    return None\n", 0.0),
    (SQUARES, "    return numbers\n", 0.4),
    (SQUARES, "    return [x for x in\n", 0.0),
    (WORDS, "def count_words(text):\n    return len(text.split(' '))", 1 / 3),
    (WORDS, "```python\ndef count(text): return 3\n```", 0.0),
    (WORDS, "", 0.0),
    (TREES, "class Tree: pass\ndef depth(t): return 2", 0.0),
    (SUMS, "print(6)", 1 / 3),
    (SUMS, "print(6", 0.0),
    (SUMS, "import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit(1)", 0.0),
]
