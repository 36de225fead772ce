mod client;
mod image;
mod node;
mod output;
mod progress;
mod service;
mod shape;
mod task;
mod template;
fn main() {}
