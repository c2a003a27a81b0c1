"""Labels by people: the page of `edge-convert label`, what it shows, and the file of decisions."""
