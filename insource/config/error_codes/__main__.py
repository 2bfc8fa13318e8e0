"""Write docs/errors.md: `python -m insource.config.error_codes`. With --check exit 1 if it is out of date."""

import sys

from insource.config.error_codes.table import PAGE, make_page


def main() -> None:
    """Write docs/errors.md, or check it."""
    text = make_page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/errors.md does not match insource/config/error_codes/: run `make schema`")


if __name__ == "__main__":
    main()
