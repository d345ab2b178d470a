"""The library: losses, adversarial training, attacks, their evaluation. Knows no web, broker or database."""

import os

# Set before torch is loaded: libgomp's threads spin for long while they wait. Beside any other busy process on the
# same cores that makes training a small model several times slower; on idle cores a short spin is no slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
