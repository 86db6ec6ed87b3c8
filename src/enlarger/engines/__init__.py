"""One file for each engine, and the catalog that names them."""
