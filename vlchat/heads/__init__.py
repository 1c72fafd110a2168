"""What stage 1 compares pictures and texts with, beside the connector: text sides, and the heads that a run keeps."""
