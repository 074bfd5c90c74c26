"""`python -m bevkd`, which torchrun starts in each process."""

from bevkd.start import main

if __name__ == "__main__":
    main()
