"""The definition of a text frame: UTF-8 without control characters. Other bytes count as noise."""

# The C0 controls without tab, line feed and carriage return, and DEL.
_CONTROLS = bytes(set(range(32)) - {9, 10, 13}) + b"\x7f"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # UTF-8; some programs write it before a text


def is_text(frame: bytes) -> bool:
    """Whether a frame is text."""
    if frame.translate(None, _CONTROLS) != frame:
        return False
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
