"""Further destinations of predictions: files, HTTP servers, programs. Imported only for a `[[sink]]`."""
