"""`python -m bevkd`, which torchrun starts in each process."""

from bevkd.app import main

main()
