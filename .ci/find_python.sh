#!/bin/sh
# Prints the path of a Python that can make our environment, or says on stderr what to install.
# A name on the path is no proof (a version manager leaves names that do not run), so each candidate is started.
set -u

works() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

narrow=""
incomplete=""
for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    works "$name" || continue
    path=$("$name" -c 'import sys; print(sys.executable)')
    if ! "$path" -c 'import sys; sys.exit(sys.maxsize < 2**32)' >/dev/null 2>&1; then
        narrow=$path
        continue
    fi
    if "$path" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
    incomplete=${incomplete:-$path}
done

if [ -n "$incomplete" ]; then
    echo "make: $incomplete cannot make environments: expected the modules venv and ensurepip, found neither or one." >&2
    echo "make: on Debian and Raspberry Pi OS: sudo apt install python3-venv" >&2
elif [ -n "$narrow" ]; then
    echo "make: expected a 64-bit Python, found the 32-bit $narrow: numpy and onnxruntime come for 64-bit systems only." >&2
    echo "make: on a Raspberry Pi: install the 64-bit Raspberry Pi OS." >&2
else
    found=$(python3 --version 2>/dev/null || echo "no python3")
    echo "make: expected Python 3.11, 3.12 or 3.13 on the path, found $found." >&2
    echo "make: on Debian 12 or 13: sudo apt install python3 python3-venv; or name one: make PYTHON=/path/to/python3.12 ..." >&2
fi
exit 1
