-- Top-level JSON objects, without touching their values: cjson would turn numbers into doubles.
-- The documents are known to be valid JSON, so the scanner only has to find where things end.

-- The position behind the string that begins at `at`.
local function string_end(json, at)
  local from = at + 1
  while true do
    local found = string.find(json, '["\\]', from)
    if string.byte(json, found) == 34 then
      return found + 1
    end
    from = found + 2
  end
end

-- The position behind the value that begins at `at`.
local function value_end(json, at)
  local first = string.sub(json, at, at)
  if first == '"' then
    return string_end(json, at)
  end
  if first ~= '{' and first ~= '[' then
    return string.find(json, '[%s,}%]]', at) or #json + 1
  end
  local depth, from = 1, at + 1
  while depth > 0 do
    local found = string.find(json, '["{}%[%]]', from)
    local char = string.sub(json, found, found)
    if char == '"' then
      from = string_end(json, found)
    else
      depth = depth + ((char == '{' or char == '[') and 1 or -1)
      from = found + 1
    end
  end
  return from
end

local function utf8(code)
  if code < 0x80 then
    return string.char(code)
  elseif code < 0x800 then
    return string.char(0xC0 + math.floor(code / 0x40), 0x80 + code % 0x40)
  elseif code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
  end
  return string.char(0xF0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40,
    0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
end

local SHORT = { b = '\b', f = '\f', n = '\n', r = '\r', t = '\t' }

-- The text between the quotes, without its escapes; a lone surrogate becomes its code unit in three bytes.
local function unescape(text)
  if not string.find(text, '\\', 1, true) then
    return text
  end
  local out, from = {}, 1
  while true do
    local found = string.find(text, '\\', from, true)
    if not found then
      out[#out + 1] = string.sub(text, from)
      return table.concat(out)
    end
    out[#out + 1] = string.sub(text, from, found - 1)
    local kind = string.sub(text, found + 1, found + 1)
    from = found + 2
    if kind == 'u' then
      local code = tonumber(string.sub(text, from, from + 3), 16)
      from = from + 4
      if code >= 0xD800 and code < 0xDC00 then
        local low = string.match(text, '^\\u([dD][c-fC-F]%x%x)', from)
        if low then
          code = 0x10000 + (code - 0xD800) * 0x400 + tonumber(low, 16) - 0xDC00
          from = from + 6
        end
      end
      out[#out + 1] = utf8(code)
    else
      out[#out + 1] = SHORT[kind] or kind
    end
  end
end

local LONG = { ['"'] = '\\"', ['\\'] = '\\\\', ['\b'] = '\\b', ['\f'] = '\\f', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t' }

-- The key as a JSON string, with no more escapes than it needs.
local function quote(key)
  key = string.gsub(key, '["\\%c]', function(char)
    -- DEL is a control character to Lua, and none to JSON.
    return LONG[char] or (string.byte(char) < 32 and string.format('\\u%04x', string.byte(char))) or char
  end)
  key = string.gsub(key, '\237([\160-\191])([\128-\191])', function(high, low)
    return string.format('\\ud%03x', (string.byte(high) - 0x80) * 0x40 + string.byte(low) - 0x80)
  end)
  return '"' .. key .. '"'
end

-- The keys of an object, unescaped, with their values as they were written, and the keys in order; `nil` for
-- what is no object. Of a key that is there twice, the last counts.
local function object(json)
  local at = json and string.match(json, '^%s*{%s*()')
  if not at then
    return nil
  end
  local values, keys = {}, {}
  while string.sub(json, at, at) ~= '}' do
    local behind = string_end(json, at)
    local key = unescape(string.sub(json, at + 1, behind - 2))
    at = string.match(json, '^%s*:%s*()', behind)
    behind = value_end(json, at)
    if values[key] == nil then
      keys[#keys + 1] = key
    end
    values[key] = string.sub(json, at, behind - 1)
    at = string.match(json, '^%s*,?%s*()', behind)
  end
  return values, keys
end

local function encode(values, keys)
  local out = {}
  for _, key in ipairs(keys) do
    out[#out + 1] = quote(key) .. ':' .. values[key]
  end
  return '{' .. table.concat(out, ',') .. '}'
end

-- Is the document no metadata?
local function is_null(json)
  return string.match(json, '^%s*null%s*$') ~= nil
end

-- What the document `old` (or `nil`) becomes by a change: 'replace', 'merge' or 'except', with the new document and
-- the list of excepted keys. A second value is the length that is too long.
local function changed(old, kind, new, max, except)
  if kind == 'replace' then
    return new
  end
  local values, keys = object(old)
  local result
  if kind == 'merge' then
    local over, order = object(new)
    if values and over then
      for _, key in ipairs(order) do
        if values[key] == nil then
          keys[#keys + 1] = key
        end
        values[key] = over[key]
      end
      result = encode(values, keys)
    else
      result = new
    end
  else
    local stays = {}
    for _, key in ipairs(except) do
      stays[key] = true
    end
    local over, order = object(new)
    local out, list = {}, {}
    for _, key in ipairs(order or {}) do
      if not stays[key] then
        out[key] = over[key]
        list[#list + 1] = key
      end
    end
    for _, key in ipairs(keys or {}) do
      if stays[key] then
        out[key] = values[key]
        list[#list + 1] = key
      end
    end
    result = encode(out, list)
  end
  if #result > max then
    return nil, #result
  end
  return result
end
