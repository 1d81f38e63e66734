"""`python -m selfsight` is the command `selfsight`."""

from selfsight.cli import main

if __name__ == "__main__":
    main()
