use super::section::section;

section! {
    /// Messages.
    pub struct Messages {
        /// Maximum length of the content in characters.
        pub content_chars_max: usize = 10_000, 1..=1_000_000;
    }
}
