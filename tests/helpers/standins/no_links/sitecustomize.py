"""Play a folder that takes no symbolic links, such as a mounted cloud drive or an exFAT stick.

STANDIN_ERRNO is the error: 1 on exFAT, 95 on some network drives, 38 or 22 on others.
"""

import os


def symlink(source, target, *more, **options):  # noqa: ANN001, ANN002, ANN003, ANN201, D103
    number = int(os.environ.get("STANDIN_ERRNO", 1))
    raise OSError(number, os.strerror(number), source, None, target)


os.symlink = symlink
