"""What a text frame is: UTF-8 without control characters. It tells noise on a line from a typing error."""

# The C0 controls without tab, line feed and carriage return, and DEL.
_CONTROLS = bytes(set(range(32)) - {9, 10, 13}) + b"\x7f"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # UTF-8; some programs write it in front of a text


def is_text(frame: bytes) -> bool:
    """Whether a frame is text at all."""
    if frame.translate(None, _CONTROLS) != frame:
        return False
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
