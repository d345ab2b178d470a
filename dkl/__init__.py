"""The library: losses, adversarial training, attacks, their evaluation. Knows no web, broker or database."""
