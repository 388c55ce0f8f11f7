//! The fields of a stream's rows, as a tree of objects, and the column that each field maps to.
//!
//! The encoder looks up each field of each row here. Rows repeat the order of their fields, so each field stores its
//! successor, and only a change of the order costs a hash lookup.

use std::collections::HashMap;

/// Separates the keys of a field's identity. No column name contains this control character.
pub const SEPARATOR: char = '\u{1f}';

/// The most fields that are tracked: objects whose keys are data have new fields in each row. Values of further fields go
/// to the column of unmapped values.
const MAX_FIELDS: usize = 10_000;

/// Identifies an object: the row or a nested one.
pub type ObjectId = usize;
/// The row itself.
pub const ROOT: ObjectId = 0;

/// Identifies a field.
#[derive(Debug, Clone, Copy)]
pub struct FieldId {
    object: ObjectId,
    index: usize,
}

/// Where the values of a field go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The field is undeclared and has had no value yet.
    Undecided,
    /// To this column.
    Column(usize),
    /// To the column of unmapped values.
    Unmapped,
}

/// A field.
#[derive(Debug)]
pub struct Field {
    key: Box<str>,
    /// Where its values go.
    pub mapping: Mapping,
    /// Declared in the schema: objects are stored as documents, not flattened.
    pub declared: bool,
    /// The fields of its objects, once it had one.
    children: Option<ObjectId>,
    /// The index of the field that followed this one in the last row.
    next: usize,
}

impl Field {
    /// Whether it had an object that was flattened.
    pub fn is_flattened(&self) -> bool {
        self.children.is_some()
    }
}

#[derive(Debug, Default)]
struct Object {
    /// The identity of the field that holds it.
    prefix: String,
    fields: Vec<Field>,
    by_key: HashMap<Box<str>, usize>,
    /// The index of the first field in the last row.
    first: usize,
    /// The index of the entry that all untracked fields share.
    untracked: Option<usize>,
}

/// All fields of a stream.
#[derive(Debug)]
pub struct FieldTree {
    objects: Vec<Object>,
    tracked: usize,
}

impl FieldTree {
    /// A tree without fields.
    pub fn new() -> Self {
        Self { objects: vec![Object::default()], tracked: 0 }
    }

    /// Finds a field or adds an undeclared one. `key` need not be UTF-8; `after` is the previous field of the object in
    /// this row.
    pub fn lookup(&mut self, object: ObjectId, after: Option<FieldId>, key: &[u8]) -> FieldId {
        let fields = &self.objects[object];
        let guess = after.map_or(fields.first, |after| fields.fields[after.index].next);
        if fields.fields.get(guess).is_some_and(|field| field.key.as_bytes() == key) {
            return FieldId { object, index: guess };
        }
        let key = String::from_utf8_lossy(key);
        let found = match self.find(object, &key) {
            Some(found) => found,
            None if self.tracked < MAX_FIELDS => self.insert(object, &key, false),
            None => self.untracked(object, &key),
        };
        let fields = &mut self.objects[object];
        match after {
            Some(after) => fields.fields[after.index].next = found.index,
            None => fields.first = found.index,
        }
        found
    }

    /// Finds a tracked field.
    pub fn find(&self, object: ObjectId, key: &str) -> Option<FieldId> {
        self.objects[object].by_key.get(key).map(|index| FieldId { object, index: *index })
    }

    /// Adds a field.
    pub fn insert(&mut self, object: ObjectId, key: &str, declared: bool) -> FieldId {
        self.tracked += 1;
        let id = self.push(object, key, Mapping::Undecided, declared);
        self.objects[object].by_key.insert(key.into(), id.index);
        id
    }

    /// A field without memory of its own: its values go to the column of unmapped values, unflattened.
    fn untracked(&mut self, object: ObjectId, key: &str) -> FieldId {
        if let Some(index) = self.objects[object].untracked {
            self.objects[object].fields[index].key = key.into();
            return FieldId { object, index };
        }
        let id = self.push(object, key, Mapping::Unmapped, true);
        self.objects[object].untracked = Some(id.index);
        id
    }

    fn push(&mut self, object: ObjectId, key: &str, mapping: Mapping, declared: bool) -> FieldId {
        let fields = &mut self.objects[object].fields;
        let index = fields.len();
        fields.push(Field { key: key.into(), mapping, declared, children: None, next: index + 1 });
        FieldId { object, index }
    }

    /// The field.
    pub fn get(&self, id: FieldId) -> &Field {
        &self.objects[id.object].fields[id.index]
    }

    /// Sets where the values of the field go.
    pub fn map(&mut self, id: FieldId, mapping: Mapping) {
        self.objects[id.object].fields[id.index].mapping = mapping;
    }

    /// The path of the field: its keys joined by [`SEPARATOR`].
    pub fn identity(&self, id: FieldId) -> String {
        let (prefix, key) = (&self.objects[id.object].prefix, &self.get(id).key);
        if id.object == ROOT { key.to_string() } else { format!("{prefix}{SEPARATOR}{key}") }
    }

    /// The fields of the objects that are values of this field.
    pub fn children(&mut self, id: FieldId) -> ObjectId {
        if let Some(children) = self.get(id).children {
            return children;
        }
        let prefix = self.identity(id);
        self.objects.push(Object { prefix, ..Object::default() });
        let children = self.objects.len() - 1;
        self.objects[id.object].fields[id.index].children = Some(children);
        children
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldTree, MAX_FIELDS, Mapping, ROOT};

    #[test]
    fn fields_beyond_the_limit_share_one_entry() {
        let mut fields = FieldTree::new();
        let declared = fields.insert(ROOT, "id", true);
        fields.map(declared, Mapping::Column(0));
        for n in 0..2 * MAX_FIELDS {
            let id = fields.lookup(ROOT, None, b"id");
            let data = fields.lookup(ROOT, Some(id), format!("u{n}").as_bytes());
            assert_eq!(fields.get(id).mapping, Mapping::Column(0));
            assert_eq!(fields.identity(data), format!("u{n}"));
        }
        assert_eq!(fields.objects[ROOT].fields.len(), MAX_FIELDS + 1);
    }
}
