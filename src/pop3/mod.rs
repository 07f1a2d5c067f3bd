//! (placeholder header, replaced by the owner of this module)
