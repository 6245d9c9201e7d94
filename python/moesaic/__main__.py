"""``python -m moesaic`` is the ``moesaic`` command."""

from moesaic._starting import main

main()
