"""`python -m tl_sparse`: the command line, where the script `tl-sparse` is not on the path."""

from tl_sparse.cli import app

if __name__ == "__main__":
    app(prog_name="tl-sparse")
