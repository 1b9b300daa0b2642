"""What several parts of Tessera need. Imports none of the other packages."""
