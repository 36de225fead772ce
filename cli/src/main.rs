mod client;
mod image;
mod node;
mod output;
mod shape;
mod task;
mod template;
fn main() {}
