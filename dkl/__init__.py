"""The library: losses, adversarial training, attacks, their evaluation. Knows no web, broker or database."""

import os

# Set before torch is loaded: while libgomp's threads wait they spin, and beside any other busy process on the same
# cores that makes training a small model five times slower (66 s instead of 13 s, two threads on two busy cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
