//! HTTP faces for people and machines that watch: `/metrics`, `/livez`, `/readyz`.
