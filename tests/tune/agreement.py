#!/usr/bin/env python3
"""Whether two whole sweeps on one machine agree.

    agreement.py COMMAND SPEC... [-- ARGUMENTS OF TUNE]

Runs the sweep twice, from nothing, and compares case by case: the time of the tuned schedule over the
default's, with its interval. Two results agree where their intervals, each widened by the noise that was
measured beside it, overlap. Prints a line a case and how many agree; exit status 1 where fewer than nine of
ten do.
"""
import json
import os
import subprocess
import sys
import tempfile


def sweep(command, words, path):
    subprocess.run([command, "tune", *words, "-o", path], check=True, stdout=subprocess.DEVNULL)
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    return {line["case"]: line for line in lines if line["record"] == "result"}


def interval(result):
    noise = max(abs(result["noise_high"] - 1), abs(1 - result["noise_low"]))
    if result["schedule"] == result["default"]:
        return 1 - noise, 1 + noise
    return result["gain_low"] * (1 - noise), result["gain_high"] * (1 + noise)


def main():
    words = sys.argv[1:]
    if len(words) < 2:
        sys.exit(__doc__)
    command, arguments = words[0], [word for word in words[1:] if word != "--"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [sweep(command, arguments, os.path.join(folder, f"{i}.jsonl")) for i in (1, 2)]
    agree = 0
    for case, one in sorted(runs[0].items(), key=lambda item: (item[1]["name"], item[1]["phase"])):
        other = runs[1][case]
        a, b = interval(one), interval(other)
        does = a[0] <= b[1] and b[0] <= a[1]
        agree += does
        same = one["schedule"] == other["schedule"]
        print(f"{one['name']:40} {one['phase']:9} {one['shape']:16} "
              f"{one['gain']:.3f} ({a[0]:.3f}-{a[1]:.3f})  {other['gain']:.3f} ({b[0]:.3f}-{b[1]:.3f})  "
              f"{'agree' if does else 'DIFFER'}{', the same schedule' if same else ''}")
    print(f"{agree} of {len(runs[0])} agree")
    sys.exit(0 if agree >= 0.9 * len(runs[0]) else 1)


if __name__ == "__main__":
    main()
