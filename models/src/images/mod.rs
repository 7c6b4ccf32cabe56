//! Classifiers of pictures: what has to be done to a picture before the graph sees it.

pub mod preprocessing;
