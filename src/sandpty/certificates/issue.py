"""`python -m sandpty.certificates.issue`: make or renew the certificate of one domain, and end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sandpty.certificates import authority


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--domain", required=True)
    options = parser.parse_args(argv)
    try:
        authority.ensure(options.directory, options.domain)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
