//! Baton's words: ids, subjects, headers, records, requests and their JSON Schemas.
