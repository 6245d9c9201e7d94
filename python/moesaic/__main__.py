"""``python -m moesaic`` is the ``moesaic`` command."""

from moesaic.cli import main

main()
