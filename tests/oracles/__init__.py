"""Independent oracles: NumPy float64, plain loops, written from the papers' formulas and sharing nothing with the package.

Beside them the inputs that package and oracles are compared on: `cases`, and `tiny_policy` for whole steps.
"""
