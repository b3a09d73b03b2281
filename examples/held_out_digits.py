"""Write a few held-out images of scikit-learn's digits as PNG files.

    python examples/held_out_digits.py DIRECTORY [COUNT]

A file name starts with the class: 7-of-digit-1234.png.
"""

import sys
from pathlib import Path

from cvt.data.sources.builtin import digits


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    directory.mkdir(parents=True, exist_ok=True)
    held_out = digits().val
    for i in range(count):
        name = f"{held_out.classes[held_out.labels[i]]}-of-{held_out.names[i]}".replace(" ", "-")
        held_out.read(i).save(directory / f"{name}.png")


if __name__ == "__main__":
    main()
