"""A token for Azure IoT Hub: `sas_token.py HUB DEVICE KEYFILE [SECONDS]`, for `password_command` of `[upstream]`.

KEYFILE holds the device's key as its bytes, or as the base64 that the portal shows (a file that ends in `.b64`).
"""

import base64
import hashlib
import hmac
import sys
import time
from pathlib import Path
from urllib.parse import quote


def main() -> int:
    """Write the token."""
    hub, device, key_file, *rest = sys.argv[1:]
    content = Path(key_file).read_bytes()
    key = base64.b64decode(content) if key_file.endswith(".b64") else content
    resource = quote(f"{hub}/devices/{device}", safe="")
    expiry = int(time.time() + float(rest[0] if rest else 3600))
    signature = hmac.new(key, f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    print(f"SharedAccessSignature sr={resource}&sig={quote(base64.b64encode(signature), safe='')}&se={expiry}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
