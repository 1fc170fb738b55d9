"""`python -m pipeline` is `alexnet`."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
