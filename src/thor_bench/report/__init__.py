"""Tables, figures and pages of records."""
