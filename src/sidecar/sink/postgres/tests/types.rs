//! Types of columns and the values in them: for declared fields, undeclared fields, and flattened objects.

use super::support::{Case, check};

#[test]
fn declared_fields_follow_the_schema() {
    check(&[
        Case {
            label: "each type",
            declared: r#"{"s":{"type":"string"},"i":{"type":"integer"},"n":{"type":"number"},
                "w":{"type":"number","airbyte_type":"integer"},"b":{"type":"boolean"},
                "dt":{"type":"string","format":"date-time"},"d":{"type":"string","format":"date"},
                "a":{"type":"array","items":{"type":"integer"}},"o":{"type":"object"}}"#,
            rows: &[
                r#"{"s":"x","i":1,"n":1.5,"w":2,"b":true,"dt":"2024-01-31T10:00:00Z","d":"2024-01-31","a":[1,"2"],"o":{"k":{"l":1}}}"#,
            ],
            columns: &[
                "s text",
                "i bigint",
                "n numeric",
                "w bigint",
                "b boolean",
                "dt timestamptz",
                "d date",
                "a jsonb",
                "o jsonb",
            ],
            values: &[r#"x|1|1.5|2|t|2024-01-31 10:00:00+00|2024-01-31|[1, "2"]|{"k": {"l": 1}}"#],
        },
        Case {
            label: "dates and times by format and airbyte_type",
            declared: r#"{"d":{"type":"string","format":"date"},"tz":{"type":"string","format":"date-time","airbyte_type":"timestamp_with_timezone"},
                "ts":{"type":"string","format":"date-time","airbyte_type":"timestamp_without_timezone"},
                "tod":{"type":"string","format":"time","airbyte_type":"time_without_timezone"},
                "todz":{"type":"string","format":"time","airbyte_type":"time_with_timezone"},"plain":{"type":"string","format":"time"},
                "ref":{"$ref":"WellKnownTypes.json#/definitions/TimeWithoutTimezone"},"n":{"$ref":"WellKnownTypes.json#/definitions/Number"}}"#,
            rows: &[
                r#"{"d":"2024-01-31","tz":"2024-01-31T10:00:00.5+02:00","ts":"2024-01-31T10:00:00.5","tod":"10:00:00.25","todz":"10:00:00+05:30","plain":"10:00:00","ref":"23:59:59","n":1234.50}"#,
                r#"{"d":"0044-03-15 BC","tz":"2024-01-31 10:00:00","ts":"2024-01-31T10:00:00+02:00","tod":"01:00:00+02:00","todz":"24:00:00Z","plain":"10:00-0230","ref":"24:00","n":"9007199254740993"}"#,
                r#"{"d":"2024-01-31T10:00:00Z","tz":"soon","ts":5,"tod":"838:59:59","todz":"10 o'clock","plain":"2024-01-31T10:00:00Z","ref":[],"n":"many"}"#,
            ],
            columns: &[
                "d date",
                "tz timestamptz",
                "ts timestamp",
                "tod time",
                "todz timetz",
                "plain text",
                "ref time",
                "n numeric",
                "_unmapped_data jsonb",
            ],
            values: &[
                "2024-01-31|2024-01-31 08:00:00.5+00|2024-01-31 10:00:00.5|10:00:00.25|10:00:00+05:30|10:00:00|23:59:59|1234.50|∅",
                "0044-03-15 BC|2024-01-31 10:00:00+00|2024-01-31 08:00:00|23:00:00|24:00:00+00|10:00-0230|24:00:00|9007199254740993|∅",
                r#"∅|∅|∅|∅|∅|2024-01-31T10:00:00Z|∅|∅|{"d": "2024-01-31T10:00:00Z", "n": "many", "ts": 5, "tz": "soon", "ref": [], "tod": "838:59:59", "todz": "10 o'clock"}"#,
            ],
        },
    ]);
}

#[test]
fn unions_with_null_are_the_other_type_and_others_are_documents() {
    check(&[
        Case {
            label: "a union with null is the other type",
            declared: r#"{"first":{"type":["null","integer"]},"last":{"type":["boolean","null"]},
                "numbers":{"type":["null","integer","number"]},"one":{"oneOf":[{"type":"null"},{"type":"integer"}]},
                "day":{"anyOf":[{"type":"string","format":"date"},{"type":"null"}]},"single":{"anyOf":[{"type":"number"}]},
                "whole":{"type":["null","number"],"airbyte_type":"integer"},"large":{"type":"integer","airbyte_type":"big_integer"},
                "both":{"anyOf":[{"type":"integer"}],"type":"integer"},"doc":{"type":["object","null"]}}"#,
            rows: &[
                r#"{"first":1,"last":false,"numbers":2.5,"one":3,"day":"2024-01-31","single":0.1,"whole":5,"large":9223372036854775808,"both":6,"doc":"{\"a\":1}"}"#,
            ],
            columns: &[
                "first bigint",
                "last boolean",
                "numbers numeric",
                "one bigint",
                "day date",
                "single numeric",
                "whole bigint",
                "large numeric",
                "both bigint",
                "doc jsonb",
            ],
            values: &[r#"1|f|2.5|3|2024-01-31|0.1|5|9223372036854775808|6|{"a": 1}"#],
        },
        Case {
            label: "other unions and unknown types are any document",
            declared: r#"{"list":{"type":["null","integer","string"]},"one":{"oneOf":[{"type":"integer"},{"type":"boolean"}]},
                "any":{"anyOf":[{"type":"object"},{"type":"string"}]},"ref":{"$ref":"x"},"odd":{"type":"decimal"},
                "empty":{},"yes":true,"nothing":null,"only":{"type":["null"]},"none":{"type":[]}}"#,
            rows: &[
                r#"{"list":"1","one":true,"any":{"a":[1, 2]},"ref":3.50,"odd":1e2,"empty":[],"yes":true,"nothing":"x","only":3,"none":null}"#,
                r#"{"list":1,"one":9007199254740993,"any":"{\"a\":1}","ref":"text","empty":"2024-01-31T10:00:00Z","yes":null}"#,
            ],
            columns: &[
                "list jsonb",
                "one jsonb",
                "any jsonb",
                "ref jsonb",
                "odd jsonb",
                "empty jsonb",
                "yes jsonb",
                "nothing jsonb",
                "only jsonb",
                "none jsonb",
            ],
            values: &[
                r#""1"|true|{"a": [1, 2]}|3.50|100|[]|true|"x"|3|∅"#,
                r#"1|9007199254740993|"{\"a\":1}"|"text"|∅|"2024-01-31T10:00:00Z"|∅|∅|∅|∅"#,
            ],
        },
    ]);
}

#[test]
fn declared_columns_exist_without_values_in_the_schemas_order() {
    check(&[Case {
        label: "declared columns exist without values, in the schema's order",
        declared: r#"{"z":{"type":"integer"},"a":{"type":"string"},"m":{"type":"object","properties":{"x":{"type":"integer"}}}}"#,
        rows: &["{}", r#"{"m":{}}"#, r#"{"a":null,"new":1}"#],
        columns: &["z bigint", "a text", "m jsonb", "new bigint"],
        values: &["∅|∅|∅|∅", "∅|∅|{}|∅", "∅|∅|∅|1"],
    }]);
}

#[test]
fn undeclared_fields_follow_their_values() {
    check(&[
        Case {
            label: "numbers",
            declared: "{}",
            rows: &[
                r#"{"whole":1,"neg":-9223372036854775808,"max":9223372036854775807,"over":9223372036854775808,"under":-9223372036854775809,"point":1.0,"exp":1e2,"EXP":1E-2,"zero":-0,"nzero":-0.0,"huge":1E200000,"tiny":1e-20000,"small":5e-10}"#,
            ],
            columns: &[
                "whole bigint",
                "neg bigint",
                "max bigint",
                "over numeric",
                "under numeric",
                "point numeric",
                "exp numeric",
                "EXP numeric",
                "zero bigint",
                "nzero numeric",
                "huge text",
                "tiny text",
                "small numeric",
            ],
            values: &[
                "1|-9223372036854775808|9223372036854775807|9223372036854775808|-9223372036854775809|1.0|100|0.01|0|0.0|1E200000|1e-20000|0.0000000005",
            ],
        },
        Case {
            label: "strings: only RFC 3339 is a time",
            declared: "{}",
            rows: &[
                r#"{"z":"2024-01-31T10:00:00Z","frac":"2024-01-31T10:00:00.123456Z","off":"2024-01-31T10:00:00+05:30","space":"2024-01-31 10:00:00-08:00","none":"2024-01-31T10:00:00","day":"2024-01-31","feb":"2023-02-29T00:00:00Z","num":"12","bool":"true","empty":"","epoch":1700000000}"#,
            ],
            columns: &[
                "z timestamptz",
                "frac timestamptz",
                "off timestamptz",
                "space timestamptz",
                "none text",
                "day text",
                "feb text",
                "num text",
                "bool text",
                "empty text",
                "epoch bigint",
            ],
            values: &[
                "2024-01-31 10:00:00+00|2024-01-31 10:00:00.123456+00|2024-01-31 04:30:00+00|2024-01-31 18:00:00+00|2024-01-31T10:00:00|2024-01-31|2023-02-29T00:00:00Z|12|true||1700000000",
            ],
        },
        Case {
            label: "arrays are JSON text without space; nulls create no column",
            declared: "{}",
            rows: &[
                r#"{"a":[1, {"b": "\u00e9\n"}],"e":[],"n":null,"t":true}"#,
                r#"{"n":null,"late":null}"#,
                r#"{"late":1,"t":false,"e":null}"#,
            ],
            columns: &["a text", "e text", "t boolean", "late bigint"],
            values: &[r#"[1,{"b":"\u00e9\n"}]|[]|t|∅"#, "∅|∅|∅|∅", "∅|∅|f|1"],
        },
        Case {
            label: "later values of the batch change the type to the common one",
            declared: "{}",
            rows: &[
                r#"{"i":1,"f":1.5,"b":true,"t":"2024-01-31T10:00:00Z","s":"x"}"#,
                r#"{"i":"2","f":2,"b":"FALSE","t":"2024-01-31","s":3.10}"#,
                r#"{"i":4.0,"f":"4.5","b":0,"t":"2024-01-31T10:00:00+0100","s":[1]}"#,
                r#"{"i":4.5,"f":"x","b":"maybe","t":"later","s":{}}"#,
                r#"{"i":true,"f":false,"b":2,"t":5,"s":null}"#,
                r#"{"i":[1],"f":[],"b":[],"t":[],"s":true}"#,
            ],
            columns: &["i text", "f text", "b text", "t text", "s text"],
            values: &[
                "1|1.5|true|2024-01-31T10:00:00Z|x",
                "2|2|FALSE|2024-01-31|3.10",
                "4.0|4.5|0|2024-01-31T10:00:00+0100|[1]",
                "4.5|x|maybe|later|∅",
                "true|false|2|5|∅",
                "[1]|[]|[]|[]|true",
            ],
        },
    ]);
}

#[test]
fn undeclared_objects_are_flattened_and_declared_ones_are_documents() {
    check(&[
        Case {
            label: "keys of all levels are joined",
            declared: r#"{"doc":{"type":"object"}}"#,
            rows: &[
                r#"{"doc":{"a":{"b":1}},"a":{"b":1,"c":{"d":"x","e":[1]},"n":null,"o":{}},"p":{"":2}}"#,
                r#"{"doc":[],"a":{"c":{"d":"y"},"b":2.0}}"#,
                r#"{"doc":"text","a":5}"#,
            ],
            columns: &["doc jsonb", "a_b numeric", "a_c_d text", "a_c_e text", "p_ bigint", "a bigint"],
            values: &[r#"{"a": {"b": 1}}|1|x|[1]|2|∅"#, "[]|2.0|y|∅|∅|∅", "\"text\"|∅|∅|∅|∅|5"],
        },
        Case {
            label: "an object in a declared scalar field is not flattened",
            declared: r#"{"s":{"type":"string"},"i":{"type":"integer"}}"#,
            rows: &[r#"{"s":{"a": 1},"i":{"a":{"b":"\u0000"}}}"#],
            columns: &["s text", "i bigint", "_unmapped_data jsonb"],
            values: &[r#"{"a":1}|∅|{"i": {"a": {"b": ""}}}"#],
        },
        Case {
            label: "objects below the twelfth level are documents",
            declared: "{}",
            rows: &[r#"{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"x":1},"b":2}}}}}}}}}}}}"#],
            columns: &["a_a_a_a_a_a_a_a_a_a_a_a jsonb", "a_a_a_a_a_a_a_a_a_a_a_b bigint"],
            values: &[r#"{"x": 1}|2"#],
        },
        Case {
            label: "rows without values",
            declared: "{}",
            rows: &["{}", r#"{"a":{}}"#, r#"{"a":null}"#, r#" { "b" : 1 } "#],
            columns: &["b bigint"],
            values: &["∅", "∅", "∅", "1"],
        },
        Case {
            label: "a row that is not an object is unmapped",
            declared: r#"{"a":{"type":"integer"}}"#,
            rows: &["[1, 2]", "\"text\\u0000\"", "17", "true", "null", r#"{"a":1}"#],
            columns: &["a bigint", "_unmapped_data jsonb"],
            values: &["∅|[1, 2]", "∅|\"text\"", "∅|17", "∅|true", "∅|∅", "1|∅"],
        },
        Case {
            label: "of duplicate fields the last value counts",
            declared: r#"{"a":{"type":"integer"}}"#,
            rows: &[r#"{"a":1,"b":1,"a":2,"b":2}"#, r#"{"a":1,"a":null,"o":{"x":1,"x":2},"o":{"y":3}}"#],
            columns: &["a bigint", "b bigint", "o_x bigint", "o_y bigint"],
            values: &["2|2|∅|∅", "∅|∅|2|3"],
        },
    ]);
}

#[test]
fn times_in_other_formats_are_converted_or_unmapped() {
    check(&[Case {
        label: "declared date-time",
        declared: r#"{"t":{"type":"string","format":"date-time"}}"#,
        rows: &[
            r#"{"t":"2024-02-29T23:59:59Z"}"#,
            r#"{"t":"2024-02-29t23:59:59z"}"#,
            r#"{"t":"2024-02-29 23:59:59.5+01:00"}"#,
            r#"{"t":"2024-02-29T23:59:59-0130"}"#,
            r#"{"t":"2024-02-29T23:59:59+14:00"}"#,
            r#"{"t":"2024-02-29T23:59:59"}"#,
            r#"{"t":"2024-02-29T23:59Z"}"#,
            r#"{"t":"2024-02-29"}"#,
            r#"{"t":"1969-12-31T23:59:59.999999Z"}"#,
            r#"{"t":"0001-01-01T00:00:00Z"}"#,
            r#"{"t":"9999-12-31T23:59:59Z"}"#,
            r#"{"t":"\u0032024-01-31T10:00:00Z"}"#,
            r#"{"t":"0000-01-01T00:00:00Z"}"#,
            r#"{"t":"10000-01-01T00:00:00Z"}"#,
            r#"{"t":"2023-02-29T00:00:00Z"}"#,
            r#"{"t":"2024-01-31T24:00:00Z"}"#,
            r#"{"t":"infinity"}"#,
            r#"{"t":"1700000000"}"#,
            r#"{"t":1700000000}"#,
            r#"{"t":""}"#,
        ],
        columns: &["t timestamptz", "_unmapped_data jsonb"],
        values: &[
            "2024-02-29 23:59:59+00|∅",
            "2024-02-29 23:59:59+00|∅",
            "2024-02-29 22:59:59.5+00|∅",
            "2024-03-01 01:29:59+00|∅",
            "2024-02-29 09:59:59+00|∅",
            "2024-02-29 23:59:59+00|∅",
            "2024-02-29 23:59:00+00|∅",
            "2024-02-29 00:00:00+00|∅",
            "1969-12-31 23:59:59.999999+00|∅",
            "0001-01-01 00:00:00+00|∅",
            "9999-12-31 23:59:59+00|∅",
            "2024-01-31 10:00:00+00|∅",
            "0001-01-01 00:00:00+00 BC|∅",
            "10000-01-01 00:00:00+00|∅",
            r#"∅|{"t": "2023-02-29T00:00:00Z"}"#,
            "2024-02-01 00:00:00+00|∅",
            r#"∅|{"t": "infinity"}"#,
            r#"∅|{"t": "1700000000"}"#,
            r#"∅|{"t": 1700000000}"#,
            r#"∅|{"t": ""}"#,
        ],
    }]);
}

#[test]
fn numbers_and_text_keep_their_exact_value() {
    check(&[
        Case {
            label: "numbers in documents keep every digit",
            declared: r#"{"d":{"type":"object"}}"#,
            rows: &[
                r#"{"d":[9007199254740993,12345678901234567890123456789,0.1234567890123456789012345,-0,1.50,1e3]}"#,
                r#"{"d":{"large":1e200000,"small":1e-20000}}"#,
            ],
            columns: &["d jsonb"],
            values: &[
                "[9007199254740993, 12345678901234567890123456789, 0.1234567890123456789012345, 0, 1.50, 1000]",
                r#"{"large": "1e200000", "small": "1e-20000"}"#,
            ],
        },
        Case {
            label: "numbers keep every digit",
            declared: r#"{"n":{"type":"number"}}"#,
            rows: &[
                r#"{"n":0.1}"#,
                r#"{"n":"0.30000000000000004"}"#,
                r#"{"n":9007199254740993}"#,
                r#"{"n":3.14159265358979323846}"#,
                r#"{"n":-12345678901234567890.50}"#,
                r#"{"n":1e20}"#,
                r#"{"n":1e200000}"#,
                r#"{"n":"007"}"#,
            ],
            columns: &["n numeric", "_unmapped_data jsonb"],
            values: &[
                "0.1|∅",
                "0.30000000000000004|∅",
                "9007199254740993|∅",
                "3.14159265358979323846|∅",
                "-12345678901234567890.50|∅",
                "100000000000000000000|∅",
                r#"∅|{"n": "1e200000"}"#,
                r#"7|{"n": "007"}"#,
            ],
        },
        Case {
            label: "integers, and numbers that make the column numeric",
            declared: r#"{"i":{"type":"integer"}}"#,
            rows: &[
                r#"{"i":9223372036854775807}"#,
                r#"{"i":-9223372036854775808}"#,
                r#"{"i":9223372036854775808}"#,
                r#"{"i":1e3}"#,
                r#"{"i":9007199254740993.0}"#,
                r#"{"i":"-7"}"#,
                r#"{"i":1.5}"#,
                r#"{"i":""}"#,
            ],
            columns: &["i numeric", "_unmapped_data jsonb"],
            values: &[
                "9223372036854775807|∅",
                "-9223372036854775808|∅",
                "9223372036854775808|∅",
                "1000|∅",
                "9007199254740993.0|∅",
                "-7|∅",
                "1.5|∅",
                r#"∅|{"i": ""}"#,
            ],
        },
        Case {
            label: "text: U+0000 is removed, lone surrogates become U+FFFD",
            declared: r#"{"s":{"type":"string"},"d":{"type":"object"}}"#,
            rows: &[
                r#"{"s":"a\u0000b","d":{"k\u0000":"v\u0000"}}"#,
                r#"{"s":"\ud83d\ude00 \ud83d \ude00","d":["\ud83d\ude00","\ud83d","\ude00x"]}"#,
                r#"{"s":"\\N","d":"\\."}"#,
                r#"{"s":"tab\tquote\"back\\slash","d":{"k":"tab\tquote\"back\\slash\/"}}"#,
                "{\"s\":\"\u{fffd}é\u{7f}\",\"d\":[\"\u{fffd}é\u{7f}\"]}",
            ],
            columns: &["s text", "d jsonb"],
            values: &[
                r#"ab|{"k": "v"}"#,
                "😀 \u{fffd} \u{fffd}|[\"😀\", \"\u{fffd}\", \"\u{fffd}x\"]",
                r#"\N|"\\.""#,
                "tab\tquote\"back\\slash|{\"k\": \"tab\\tquote\\\"back\\\\slash/\"}",
                "\u{fffd}é\u{7f}|[\"\u{fffd}é\u{7f}\"]",
            ],
        },
        Case {
            label: "keys with lone surrogates or U+0000",
            declared: "{}",
            rows: &[r#"{"\ud800x":1,"ok":2}"#, r#"{"ok":3,"o":{"\udc00":4,"a\u0000b":5}}"#],
            columns: &["_x bigint", "ok bigint", "o__ bigint", "o_a_b bigint"],
            values: &["1|2|∅|∅", "∅|3|4|5"],
        },
    ]);
}
