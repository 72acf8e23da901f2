"""The application: a run directory -> .tflite files, a card, a table."""
