//! Faces of a pod: Task API, `osc run`. Each only translates to [`sandbox`].

pub mod sandbox;
