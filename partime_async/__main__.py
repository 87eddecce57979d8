"""`python -m partime_async` is the command line."""

from partime_async.cli import main

if __name__ == "__main__":
    main()
