"""The floor: one process, one bundle after the other, no Slurm.

python loop.py ITEMS
"""

import sys

import work

for first in work.missing(int(sys.argv[1])):
    work.bundle(first)
