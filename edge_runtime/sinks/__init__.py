"""Where predictions go beside the upstream: files, HTTP servers, programs. Imported where there is a `[[sink]]`."""
