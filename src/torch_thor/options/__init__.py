"""What the user says: frozen groups of options that check themselves, schedules, errors."""
