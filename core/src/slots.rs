//! Values that others refer to by a token, which goes stale when the value is gone.

use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::codec::OutOfMemory;

/// Refers to a value in [`Slots`]. Of no use once the value was removed, even if another took its
/// place. `K` keeps the tokens of different tables apart.
#[derive(Debug)]
pub struct Token<K> {
    index: u32,
    generation: u32,
    kind: PhantomData<fn() -> K>,
}

impl<K> Token<K> {
    const fn new(index: u32, generation: u32) -> Self {
        Token { index, generation, kind: PhantomData }
    }
}

impl<K> Clone for Token<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Token<K> {}

impl<K> PartialEq for Token<K> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<K> Eq for Token<K> {}

/// A table of values with tokens of kind `K`.
#[derive(Debug)]
pub struct Slots<K, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<K, T> Slots<K, T> {
    /// An empty table.
    pub const fn new() -> Self {
        Slots { slots: Vec::new(), free: Vec::new(), kind: PhantomData }
    }

    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Result<Token<K>, OutOfMemory> {
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(index as usize) {
                slot.value = Some(value);
                return Ok(Token::new(index, slot.generation));
            }
        }
        let index = u32::try_from(self.slots.len()).map_err(|_| OutOfMemory)?;
        self.slots.try_reserve(1).map_err(|_| OutOfMemory)?;
        // Room for every index, so that a removal needs no memory.
        let missing = self.slots.len().saturating_add(1).saturating_sub(self.free.len());
        self.free.try_reserve(missing).map_err(|_| OutOfMemory)?;
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Ok(Token::new(index, 0))
    }

    /// The value of a token, unless it is gone.
    pub fn get(&self, token: Token<K>) -> Option<&T> {
        let slot = self.slots.get(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        slot.value.as_ref()
    }

    /// The value of a token, to be changed.
    pub fn get_mut(&mut self, token: Token<K>) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        slot.value.as_mut()
    }

    /// Takes a value out; its token is stale from now on.
    pub fn remove(&mut self, token: Token<K>) -> Option<T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index);
        Some(value)
    }
}

impl<K, T> Default for Slots<K, T> {
    fn default() -> Self {
        Slots::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Any {}

    #[test]
    fn a_token_dies_with_its_value() {
        let mut slots = Slots::<Any, _>::new();
        let a = slots.insert("a").unwrap();
        let b = slots.insert("b").unwrap();
        assert_eq!(slots.get(a), Some(&"a"));
        assert_eq!(slots.remove(a), Some("a"));
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.remove(a), None);
        let c = slots.insert("c").unwrap();
        assert_eq!(c.index, a.index);
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.get(c), Some(&"c"));
        assert_eq!(slots.get(b), Some(&"b"));
    }

    #[test]
    fn places_are_used_again() {
        let mut slots = Slots::<Any, _>::new();
        for n in 0..1000 {
            let token = slots.insert(n).unwrap();
            assert_eq!(slots.remove(token), Some(n));
        }
        assert_eq!(slots.slots.len(), 1);
    }
}
