"""`python -m pipeline` is `alexnet`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
