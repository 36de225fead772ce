mod output;
mod template;
fn main() {}
