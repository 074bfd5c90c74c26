"""`python -m bevkd`, as the launcher of several processes needs it."""

from bevkd.app import main

main()
