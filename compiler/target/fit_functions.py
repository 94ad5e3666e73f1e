#!/usr/bin/env python3
"""Fits the polynomials of VectorMath.h and prints VectorMathCoefficients.inc.

  python3 compiler/target/fit_functions.py > compiler/target/VectorMathCoefficients.inc

Each polynomial is the minimax one of its degree for a weighted error, found by Remez' exchange in
60 digits, and rounded to the type. Needs mpmath, and that only when coefficients change.
"""
from mpmath import mp, mpf, matrix, lu_solve, exp, log, erf, erfc, tanh, cos, pi, sqrt, findroot

mp.dps = 60


def remez(f, weight, low, high, degree, iterations=30):
    """Coefficients c of sum(c[i] * x**i) that minimize max |(p(x) - f(x)) * weight(x)|."""
    count = degree + 2
    points = [(low + high) / 2 - (high - low) / 2 * cos(pi * i / (count - 1)) for i in range(count)]
    grid = [low + (high - low) * mpf(i) / 2000 for i in range(2001)]
    values = [(f(x), weight(x)) for x in grid]
    for _ in range(iterations):
        rows = matrix(count, count)
        right = matrix(count, 1)
        for i, x in enumerate(points):
            for k in range(degree + 1):
                rows[i, k] = x**k
            rows[i, degree + 1] = (-1) ** i / weight(x)
            right[i] = f(x)
        solution = lu_solve(rows, right)
        c = [solution[k] for k in range(degree + 1)]
        errors = [(polynomial(c, x) - fx) * w for x, (fx, w) in zip(grid, values)]
        # The largest error of each run of one sign.
        extrema, best = [], 0
        for i in range(1, len(grid)):
            if (errors[i] > 0) != (errors[best] > 0):
                extrema.append(best)
                best = i
            elif abs(errors[i]) > abs(errors[best]):
                best = i
        extrema.append(best)
        while len(extrema) > count:
            ends = (abs(errors[extrema[0]]), abs(errors[extrema[-1]]))
            extrema.pop(0 if ends[0] < ends[1] else -1)
        if len(extrema) < count:
            break
        new = [grid[i] for i in extrema]
        sizes = [abs(errors[i]) for i in extrema]
        points = new
        if max(sizes) < min(sizes) * mpf("1.0001"):
            break
    return c, max(abs(e) for e in errors)


def polynomial(c, x):
    value = mpf(0)
    for coefficient in reversed(c):
        value = value * x + coefficient
    return value


def rounded(value, bits):
    """The nearest number with so many binary digits."""
    if value == 0:
        return mpf(0)
    exponent = mp.floor(log(abs(value), 2)) - bits + 1
    return mp.nint(value / mpf(2) ** exponent) * mpf(2) ** exponent


def text(value, bits):
    number = float(rounded(value, bits))
    return number.hex()


def fit(name, f, weight, low, high, degrees, note):
    """One polynomial for f32 and one for f64; `high` may differ."""
    out = []
    highs = high if isinstance(high, tuple) else (high, high)
    for bits, degree, end in zip((24, 53), degrees, highs):
        c, error = remez(f, weight, mpf(low), mpf(end), degree)
        out.append((bits, c, error))
    print(f"// {note}")
    for bits, c, error in out:
        kind = "F32" if bits == 24 else "F64"
        print(f"// {kind}: degree {len(c) - 1}, weighted error 2^{float(log(error, 2)):.1f}")
    print(f"constexpr Coefficients k{name} = {{")
    for bits, c, error in out:
        body = ", ".join(text(value, bits) for value in c)
        print(f"    {{{body}}},")
    print("};")


def main():
    print("// Made by fit_functions.py. From the constant term on; f32, then f64.")
    tiny = mpf(2) ** -200
    ln2 = log(mpf(2))
    half = ln2 / 2 * mpf("1.001")
    # exp(r) = 1 + r + r^2 P(r)
    def rest_of_exp(r):
        if abs(r) < mpf("1e-8"):
            return mpf(1) / 2 + r / 6 + r * r / 24
        return (exp(r) - 1 - r) / (r * r)
    fit("Exp", rest_of_exp, lambda r: max(r * r, mpf("1e-3")), -half, half, (4, 10),
        "exp(r) = 1 + r + r^2 P(r), |r| <= ln(2)/2")
    # log(1 + f) = f - f^2/2 + f^3 P(f)
    def rest_of_log(f):
        if abs(f) < mpf("1e-8"):
            return mpf(1) / 3 - f / 4 + f * f / 5
        return (log(1 + f) - f + f * f / 2) / f**3
    fit("Log", rest_of_log, lambda f: max(f * f, mpf("1e-3")), sqrt(mpf(2)) / 2 - 1, sqrt(mpf(2)) - 1, (8, 19),
        "log(1 + f) = f - f^2/2 + f^3 P(f), sqrt(1/2) <= 1 + f <= sqrt(2)")
    # tanh(x) = x + x^3 P(x^2)
    def rest_of_tanh(s):
        x = sqrt(s)
        if x < mpf("1e-8"):
            return -mpf(1) / 3 + 2 * s / 15
        return (tanh(x) - x) / x**3
    fit("Tanh", rest_of_tanh, lambda s: max(s, mpf("1e-3")), tiny, mpf("0.625") ** 2, (5, 12),
        "tanh(x) = x + x^3 P(x^2), |x| <= 0.625")
    # erf(x) = x + x P(x^2)
    def rest_of_erf(s):
        x = sqrt(s)
        if x < mpf("1e-8"):
            return 2 / sqrt(pi) * (1 - s / 3) - 1
        return erf(x) / x - 1
    fit("ErfSmall", rest_of_erf, lambda s: mpf(1), tiny, mpf("0.92") ** 2, (6, 12),
        "erf(x) = x + x P(x^2), |x| <= 0.92")
    # erf(x) = 1 - exp(P(x)); of erfc(x) only as many digits matter as 1 has.
    def log_erfc(x):
        return log(erfc(x))
    fit("ErfLarge", log_erfc, lambda x: erfc(x), mpf("0.92"), (mpf(4), mpf(2)), (9, 15),
        "erf(x) = 1 - exp(P(x)), 0.92 <= x <= 4 (f32), 2 (f64)")
    fit("ErfLargest", log_erfc, lambda x: erfc(x), mpf(2), (mpf(4), mpf(6)), (1, 17),
        "erf(x) = 1 - exp(P(x)), 2 <= x <= 6 (f64 alone)")


main()
