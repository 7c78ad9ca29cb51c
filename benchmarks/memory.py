"""Memory of a survey at n and 4n units: the peak of one process each, in MB.

Run: python benchmarks/memory.py MODEL_FOLDER TEXTS.txt [UNITS]
"""

import resource
import subprocess
import sys


def measure(model: str, texts: str, units: int) -> None:
    from secant.uses.survey import survey

    survey([model], texts, rows=units, has_controls=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if len(sys.argv) > 4:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[4]))
        return
    units = int(sys.argv[3]) if len(sys.argv) > 3 else 450
    peaks = []
    for count in (units, 4 * units):
        command = [sys.executable, __file__, sys.argv[1], sys.argv[2], "-", str(count)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(ran.stdout.split()[-1]))
        print(f"{count} units: peak {peaks[-1]:.0f} MB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f} (wanted: at most 1.03)")


if __name__ == "__main__":
    main()
