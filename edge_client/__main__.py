"""`python -m edge_client` is the `fedfleet` command."""

from edge_client.cli import main

if __name__ == "__main__":
    main()
